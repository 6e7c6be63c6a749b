"""What is said of a program that failed."""

from pathlib import Path

from jobs.outcome import failure_words
from jobs.run_dir import EXIT_BAD_INPUT, EXIT_OUT_OF_MEMORY, append_event


def words(run_dir: Path, code: int) -> str:
    return failure_words(run_dir, code, advice="Free memory.")


def test_a_program_s_own_last_words_are_taken(tmp_path: Path) -> None:
    append_event(tmp_path, "error", message="no folder")
    append_event(tmp_path, "error", message="no file")
    assert words(tmp_path, EXIT_BAD_INPUT) == "no file"


def test_an_error_of_an_earlier_run_is_not_this_one_s(tmp_path: Path) -> None:
    append_event(tmp_path, "start")
    append_event(tmp_path, "error", message="no server answers")
    append_event(tmp_path, "start")
    append_event(tmp_path, "loaded")
    assert words(tmp_path, EXIT_OUT_OF_MEMORY).endswith("ran out of memory. Free memory.")
    (tmp_path / "program.log").write_text("Segmentation fault\n")
    assert words(tmp_path, -11).endswith("Segmentation fault")
    append_event(tmp_path, "error", message="no such policy")
    assert words(tmp_path, EXIT_BAD_INPUT) == "no such policy"


def test_without_any_words_the_log_is_quoted(tmp_path: Path) -> None:
    assert words(tmp_path, 3).endswith("(no log)")
