"""Quality of image samples, against the teacher's samples and against real images."""

from functools import cache

from torch import Tensor

from dcm.metrics import distances
from dcm.metrics.distances import NAN, FeatureSet, frechet, kernel_distance, paired_error, precision_recall
from dcm.metrics.features import Classifier, PixelFeatures
from dcm.metrics.metric import Metric


def columns(encoder, name: str = "") -> dict[str, Metric]:
    """Columns of what is measured on an encoder's features, in the order of :meth:`ImageQuality.measure`, as they read.

    `name` stands in those of an encoder beside the first one.
    """
    on = {"pixel": "(pixels)", "Inception": "(Inception, mode clean)"}.get(encoder.name, f"({encoder.name} features)")
    fd, kid = ("FID", "KID") if encoder.name == "Inception" else ("Frechet distance", "kernel distance")
    near, end = (f"against teacher {on}", f"_{name}") if name else ("against teacher", "")
    named = {"": ("fd_teacher", "fd_real"), "inception": ("fid_teacher", "fid_real")}
    to_teacher, to_real = named.get(name, (f"fd_{name}", f"fd_{name}_real"))
    return {
        to_teacher: Metric(f"{fd} to teacher {on}", ratio=True),
        to_real: Metric(f"{fd} to held-out images {on}", ratio=True),
        f"kid{end or '_teacher'}": Metric(f"{kid} to teacher {on}"),
        f"precision{end}": Metric(f"precision {near}", lower_is_better=False),
        f"recall{end}": Metric(f"recall {near}", lower_is_better=False),
        f"paired{end}": Metric(f"ODE error, {encoder.name} features", ratio=True, judged=False),
    }


class ImageQuality:
    """Quality metrics of image samples.

    Parameters
    ----------
    extractor : features that the primary metric rests on; see :mod:`dcm.metrics.features`.
    classifier : judges whether samples show their class, and is a second encoder where it is not the extractor; where it
        is, or there is none, the pixels are.
    real : held-out real images (n, C, H, W) in [-1, 1]; where there are none, ``fd_real`` is NaN.
    self_supervised : a further encoder, which no labels taught. inception : another,
        :class:`~dcm.metrics.encoders.InceptionFeatures`; with None the usual FID and KID are not measured.

    ``fd_teacher``, ``fd_real``: Frechet distance to the teacher's samples from the same noise, and to real images.
    ``kid_teacher``: kernel distance to the teacher's samples. ``precision``, ``recall``: against the teacher's samples.
    ``paired``: the ODE error in feature space, a sample's mean squared distance to the teacher's from the same noise.
    The same six on a further encoder's features have ``classifier``, ``pixels``, ``self`` or ``inception`` in their names;
    see :func:`columns`. ``agreement``: share of samples that the classifier assigns to their own class.
    ``sharpness``: see :func:`dcm.metrics.distances.sharpness`.
    """

    primary, secondary_metrics = "fd_teacher", ("fd_real", "sharpness")

    def __init__(self, extractor, classifier: Classifier | None, real: Tensor | None = None, self_supervised=None, inception=None):
        self.extractor, self.classifier = extractor, classifier
        self.self_supervised, self.inception = self_supervised, inception
        self.real = real if real is not None and len(real) else None
        # A verdict must not hang on one network: beside a classifier's features, small images' pixels.
        further = {"classifier": classifier} if classifier and classifier is not extractor else {"pixels": PixelFeatures()}
        further |= {"self": self_supervised, "inception": inception}
        views = {"": extractor} | {name: e for name, e in further.items() if e is not None}
        self.views = [(encoder, columns(encoder, name)) for name, encoder in views.items()]
        judged = {"agreement": Metric("share classified as their class", lower_is_better=False)} if classifier else {}
        self.metrics = self.views[0][1] | judged | {
            "sharpness": Metric("high-frequency power [teacher = 1]", judged=False),
        } | {name: metric for _, read in self.views[1:] for name, metric in read.items()}

    @property
    def note(self) -> str:
        """What stands behind the metrics, for the report."""
        said = f"Features: {self.extractor.name}."
        if self.classifier:
            said = f"Features and class agreement: {self.extractor.name}; the classifier is right on"
            said = f"{said} {self.classifier.accuracy:.1%} of held-out images."
        if self.self_supervised is not None:
            near = self.self_supervised.accuracy.get("kNN, k 20", NAN)
            said += f" By nearest neighbours in the features of the encoder that had no labels {near:.1%} are."
        missing = ["fd_real (no held-out real images)"] if self.real is None else []
        if self.inception is None:
            missing.append("FID and KID on Inception features (no weights)")
        return said + (f" Not measured: {', '.join(missing)}." if missing else "")

    def _seen(self, x: Tensor) -> list[FeatureSet]:
        """Images in the eyes of every view."""
        return [FeatureSet(encoder.features(x.float().clamp(-1, 1))) for encoder, _ in self.views]

    @cache  # noqa: B019 - a quality lasts as long as its notebook
    def _kept(self, x: Tensor) -> list[FeatureSet]:
        """What every student is compared with: the teacher's samples, and real images, each seen once."""
        return self._seen(x)

    def measure(self, x: Tensor, condition: Tensor, teacher_x: Tensor) -> dict[str, float]:
        """All metrics of samples `x` (B, C, H, W) of classes `condition` (B,), against `teacher_x` (B, C, H, W).

        Row i of both is from the same noise. What cannot be measured is NaN. Values outside [-1, 1] are clamped.
        """
        out: dict[str, float] = {}
        for i, ((_, read), own, teacher) in enumerate(zip(self.views, self._seen(x), self._kept(teacher_x))):
            to_real = NAN if self.real is None else frechet(own, self._kept(self.real)[i])
            near = *precision_recall(own, teacher), paired_error(own, teacher)
            out |= zip(read, (frechet(own, teacher), to_real, kernel_distance(own, teacher), *near))
        x, teacher_x = x.float().clamp(-1, 1), teacher_x.float().clamp(-1, 1)
        if self.classifier:
            out["agreement"] = float((self.classifier.classify(x) == condition.cpu()).double().mean())
        out["sharpness"] = distances.sharpness(*map(distances.radial_power, (x, teacher_x)))
        return {name: out[name] for name in self.metrics}
