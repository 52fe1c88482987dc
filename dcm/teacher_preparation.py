"""What notebook 1 does so that a study's teacher is ready."""

from __future__ import annotations

from dcm.artifacts import write_json


def prepare_teacher(session) -> None:
    """Train, or fetch from the repository, the teacher of the session's study; nothing to do for the exact one.

    Leaves ``run_dir/teacher/teacher.json``, which says what the teacher is and where its data lie.
    """
    if session.p.study == "gmm":
        about = {"study": "gmm", "dimension": session.p.dimension, "modes": session.p.modes}
        write_json(session.run_dir / "teacher" / "teacher.json", about)
        return
    if session.p.study == "sdxl":
        from dcm import sdxl_study

        sdxl_study.prepare(session.p, session.run_dir, session.device)
        return
    from dcm import image_study

    image_study.prepare(session.p, session.run_dir, session.device)
