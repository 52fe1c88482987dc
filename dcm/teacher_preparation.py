"""What notebook 1 does so that a study's teacher is ready."""

from __future__ import annotations

from dcm.artifacts import write_json


def prepare_teacher(session) -> None:
    """Train, or fetch from the repository, the teacher of the session's study; nothing to do for an exact one.

    Leaves ``run_dir/teacher/teacher.json``, which says what the teacher is.
    """
    write_json(session.run_dir / "teacher" / "teacher.json", {"study": session.p.study, "teacher": session.study.teacher_id})
