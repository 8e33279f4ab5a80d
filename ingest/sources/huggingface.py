"""``huggingface``: a dataset of the hub, streamed, or one that lies in a folder, through the package ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.contract import SourceDocument
from ingest.errors import SourceError, first_line
from ingest.sources.registry import SOURCES, file_hashes, nonempty

_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")


@SOURCES.register("huggingface")
@dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFace:
    """Rows of a split, in their order; a document is named ``split:row`` or by its ``name_field``.

    A dataset of the hub is read as it comes and never kept; what identifies it is the commit its revision stands for. A folder
    may hold what ``save_to_disk`` wrote, or files that ``load_dataset`` reads.
    """

    paths: tuple[str, ...] = ()
    """One folder; without it, the hub is asked for ``name``."""
    name: str | None = None
    """Id at the hub, ``owner/name``."""
    config: str | None = None
    """Configuration, where it has several."""
    split: str = "train"
    """Which part of it."""
    revision: str | None = None
    """Branch, tag or commit."""
    text_field: str = "text"
    """Field of the text."""
    name_field: str | None = None
    """Field of a document's name; None names it by its place."""

    def inputs(self) -> Mapping[str, str]:
        """Return the sha256 of every file of a folder, or the commit of the hub.

        Raises
        ------
        SourceError
            ``bad-source``: neither or both were given; ``corpus-missing``, ``corpus-unreadable``.
        """
        self._check_place()
        if self.paths:
            folder = self._folder()
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            return file_hashes([(path.relative_to(folder).as_posix(), path) for path in files])
        return {f"hub:{self.name}": self._commit()}

    def documents(self) -> Iterator[SourceDocument]:
        """Yield one document a row."""
        self._check_place()
        return nonempty(self._read(), f"the dataset {self._called}")

    def _check_place(self) -> None:
        if len(self.paths) + (self.name is not None) != 1:
            raise SourceError(
                f"a dataset was asked for at {', '.join(self.paths) or 'no folder'} and under {self.name or 'no name'}. Nothing "
                "was written. Give one folder (--corpus), or --source huggingface:name=owner/name.",
                kind="bad-source",
            )

    @property
    def _called(self) -> str:
        return f"{self.paths[0] if self.paths else self.name} ({self.split})"

    def _commit(self) -> str:
        """Return the commit that the revision stands for now."""
        from huggingface_hub import HfApi

        with self._asked():
            return str(HfApi().dataset_info(str(self.name), revision=self.revision).sha)

    def _folder(self) -> Path:
        folder = Path(self.paths[0])
        if not folder.is_dir():
            raise SourceError(
                f"the dataset {self.paths[0]!r} is no folder. Nothing was written. Check --corpus.",
                kind="corpus-missing",
                path=self.paths[0],
            )
        return folder

    def _read(self) -> Iterator[SourceDocument]:
        wanted = [self.text_field, *([self.name_field] if self.name_field else [])]
        with self._asked():
            rows = self._rows(wanted)
            for number, row in enumerate(rows, start=1):
                yield from self._document(number, row)

    def _rows(self, wanted: list[str]) -> Any:
        import datasets

        datasets.disable_progress_bars()
        if self.paths:
            folder = self._folder()
            saved = any((folder / name).is_file() for name in _SAVED)
            data = datasets.load_from_disk(str(folder)) if saved else None
            self._check_settings(saved=saved, splits=not isinstance(data, datasets.Dataset))
            if isinstance(data, datasets.DatasetDict):
                data = data[self.split]
            if data is None:
                data = datasets.load_dataset(
                    str(folder), self.config, split=self.split, streaming=True
                )
        else:
            data = datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self._commit(), streaming=True
            )
        known = data.column_names
        if known is not None and (absent := [name for name in wanted if name not in known]):
            raise self._unusable(
                f"it has no field {', '.join(absent)}; its fields are {', '.join(known)}"
            )
        return data.select_columns(wanted) if known is not None else data

    def _check_settings(self, *, saved: bool, splits: bool) -> None:
        """Refuse what a folder has none of, and the recipe would hold all the same."""
        for name, unused in (
            ("revision", self.revision is not None),
            ("config", saved and self.config is not None),
            ("split", not splits and self.split != "train"),
        ):
            if unused:
                raise SourceError(
                    f"{name}={getattr(self, name)} was said of the dataset in {self.paths[0]}, which has none to choose from. "
                    "Nothing was written. Leave it out.",
                    kind="setting-unused",
                    path=self.paths[0],
                )

    def _document(self, number: int, row: Mapping[str, Any]) -> Iterator[SourceDocument]:
        text = row.get(self.text_field)
        if text is None:
            return
        if not isinstance(text, str):
            raise self._unusable(f"row {number} holds {type(text).__name__}, not text")
        label = row.get(self.name_field) if self.name_field else None
        place = f"{self.split}:{number}"
        yield SourceDocument(name=place if label is None else str(label), text=text)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Say in our own words what the libraries raise."""
        try:
            yield
        except ImportError as error:
            raise SourceError(
                f"the dataset {self._called} needs the package 'datasets', which is not installed. Nothing was written. Install "
                "it: pip install 'actlake[datasets]'",
                kind="missing-package",
            ) from error
        except SourceError:
            raise
        except (
            Exception
        ) as error:  # the hub, the network, Arrow and every file format raise their own
            raise self._unusable(first_line(error)) from error

    def _unusable(self, found: str) -> SourceError:
        return SourceError(
            f"the dataset {self._called} cannot be used: {found}. What was committed before stands. Check its name, split, "
            "config, fields (--source huggingface:split=…,text_field=…), and the network where it is not a folder.",
            kind="corpus-unreadable",
            path=self._called,
        )
