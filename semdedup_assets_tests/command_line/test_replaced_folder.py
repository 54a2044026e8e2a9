"""A folder is one of two whole ones, whenever Ctrl-C is pressed, and what is said of it is so."""

from pathlib import Path

import pytest

from semdedup_assets.command_line.replaced_folder import ReplacedFolder


class InterruptedPath(type(Path())):  # type: ignore[misc]  # before Python 3.12 only the system's own class can be derived from
    """Ctrl-C is pressed when it is to be renamed, or once it is."""

    after = False

    def replace(self, target: Path) -> Path:
        if self.after or self.name == ".earlier":
            Path(self).replace(target)
        if self.name != ".earlier":
            raise KeyboardInterrupt
        return target


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_ctrl_c_leaves_one_of_the_two(tmp_path: Path, *, earlier: bool, after: bool) -> None:
    to = tmp_path / "out"
    if earlier:
        to.mkdir()
        (to / "which").write_text("earlier")
    replaced = ReplacedFolder(Path("out"))
    assert replaced.left() == ""
    with pytest.raises(KeyboardInterrupt), replaced.beside(to) as beside:  # noqa: PT012
        written = InterruptedPath(beside / "out")
        written.mkdir()
        (written / "which").write_text("new")
        written.after = after
        assert str(beside) in replaced.left()
        replaced.replace(to, written)
    found = (to / "which").read_text() if to.exists() else None
    assert found == ("new" if after else "earlier" if earlier else None)
    assert replaced.interrupted() == f"interrupted: out {'holds the new export' if after else 'is as it was'}"
    assert replaced.left() == ""
    assert {path.name for path in tmp_path.iterdir()} <= {"out"}
