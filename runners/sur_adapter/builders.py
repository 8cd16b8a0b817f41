"""`privlm build surd`: triples of image, sentence and keywords from a folder of images, in the layout of SURD."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from privlm import files
from privlm.config import SCHEMAS
from privlm.diffusion.image_rows import SPLITS, ImageRow
from privlm.diffusion.image_schema import ImagesConfig
from privlm.errors import UsageError
from privlm.schema import configs_dir, defaults, one_of, problems, require_packages

CACHE = "build_surd"
"""Folder of files.cache_folder() where what was asked is kept, whatever becomes of the build."""

MAX_TOKENS = 48  # of a sentence
ASKED = """A picture was made from each list of keywords. Say in one short plain sentence what the picture shows.

Keywords: portrait, old fisherman, grey beard, harbour, oil painting, highly detailed, masterpiece
Sentence: An oil painting of an old fisherman with a grey beard in a harbour.

Keywords: red, cube, two, white background, flat, sharp, best quality
Sentence: There are two red cubes on a white background.

Keywords: {keywords}
Sentence:"""
"""For base and chat models alike: a text to continue."""


def surd(folder: Path, words: Sequence[str]) -> str:
    """Images with keywords and a sentence each, as SURD has them, from a folder of images with their keywords.

    words: images=DIR, and captions=COLUMN (the sentences stand in its table) or llm=NAME with llm.FIELD=VALUE (a
    language model says the keywords as a sentence; its answers are kept, and the same command goes on with them);
    fields of data=imagefolder, prompt_column=tags max_bad_share=0.1.

    Raises UsageError: no images or keywords, neither or both of captions and llm, or too many rows without a sentence.
    """
    require_packages("privlm build surd", "PIL", extra="diffusion")
    asked = _Words.of(words)
    from privlm.diffusion.images import load_images

    images = load_images(asked.data)
    rows = [row for split in SPLITS for row in images.split(split)]
    notes = [note for note in images.notes if note.startswith("images left out")]
    if asked.llm is None:
        _require_sentences(rows, asked, images.notes)
    else:
        rows, without = _rephrased(rows, asked)
        notes += [f"{without} without a sentence of the model"] if without else []
    _write(folder, rows, asked.root)
    return "; ".join([f"{len(rows):,} images with keywords and a sentence each", *notes])


@dataclass(frozen=True)
class _Words:
    """data: of the images. root: their folder. captions: the column of sentences, or None. llm: whoever is asked, or
    None.
    """

    data: ImagesConfig
    root: Path
    captions: str | None
    llm: Any

    @classmethod
    def of(cls, words: Sequence[str]) -> _Words:
        from omegaconf import OmegaConf

        of_llm = [word.removeprefix("llm.") for word in words if word.startswith("llm.")]
        plain = OmegaConf.from_dotlist([word for word in words if not word.startswith("llm.")])
        given: Any = OmegaConf.to_container(plain)
        path, captions, llm = (given.pop(name, None) for name in ("images", "captions", "llm"))
        if path is None:
            raise UsageError("images: name the folder of images with their keywords, images=DIR")
        if of_llm and llm is None:
            raise UsageError(f"llm.{of_llm[0]} is of a model that no word names: llm=NAME")
        if (captions is None) == (llm is None):
            raise UsageError("say where the sentences come from: captions=COLUMN of the table, or llm=NAME")
        asked = {} if captions is None else {"text_column": captions}
        data = defaults(ImagesConfig, "data", "imagefolder", **given | asked | {"path": str(path)})
        if captions is None:
            data = replace(data, text_column=data.prompt_column)
        _refuse(problems(OmegaConf.structured(data), None))
        return cls(
            data,
            Path(str(path)).expanduser(),
            captions,
            None if llm is None else _llm(str(llm), OmegaConf.from_dotlist(of_llm)),
        )


def _refuse(found: list[str]) -> None:
    if found:
        raise UsageError("\n".join(found))


def _require_sentences(rows: Sequence[ImageRow], asked: _Words, notes: Sequence[str]) -> None:
    if all(row.text == row.prompt for row in rows):
        raise UsageError(
            f"captions={asked.captions}: no row has a sentence beside its keywords ({'; '.join(notes)}): name the "
            "column of the sentences, and that of the keywords by prompt_column=COLUMN"
        )


# --- a language model -----------------------------------------------------------------------------------------------


def _llm(name: str, changes: Any) -> Any:
    """The group `llm` as a run has it; what is asked is kept where the next build finds it."""
    from omegaconf import OmegaConf

    _refuse(one_of("llm", name, sorted(path.stem for path in (configs_dir() / "llm").glob("*.yaml"))))
    config = OmegaConf.structured(defaults(SCHEMAS["llm"][_backend(name)], "llm", name, **changes))
    _refuse(problems(config, None, "llm."))
    if config.cache_dir is None:
        config.cache_dir = str(files.cache_folder() / CACHE)
    return config


def _backend(name: str) -> str:
    """Of a YAML of the group `llm`, or of the one that it starts from."""
    from omegaconf import OmegaConf

    content: Any = OmegaConf.load(configs_dir() / "llm" / f"{name}.yaml")
    bases = [base for base in content["defaults"] if isinstance(base, str) and base != "_self_"]
    return content["backend"] if "backend" in content else _backend(bases[0])


def _rephrased(rows: Sequence[ImageRow], asked: _Words) -> tuple[list[ImageRow], int]:
    """The rows with a sentence each, and how many the model gave none for."""
    from privlm.diffusion.image_folder import caption
    from privlm.llm.opening import label, open_llm
    from privlm.llm.types import GenerateRequest, Sampling

    sampling = Sampling(MAX_TOKENS, stop=("\n",))
    requests = [GenerateRequest(ASKED.format(keywords=row.prompt), sampling, item=row.where) for row in rows]
    Path(asked.llm.cache_dir).expanduser().mkdir(parents=True, exist_ok=True)
    with open_llm(asked.llm, _Build(Path(asked.llm.cache_dir).expanduser())) as model:
        answers = model.generate(requests)
    sentences = [caption(_first_line(answer.text)) for answer in answers]
    found = [
        replace(row, text=text)
        for row, (text, problem) in zip(rows, sentences, strict=True)
        if problem is None and text != row.prompt
    ]
    without = len(rows) - len(found)
    if without > asked.data.max_bad_share * len(rows):
        raise UsageError(
            f"{label(asked.llm)} gave no sentence for {without} of {len(rows)} images, more than "
            f"max_bad_share={asked.data.max_bad_share:g} allows: ask another model, or raise it"
        )
    return found, without


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].removeprefix("Sentence:").strip().strip('"') if lines else ""


@dataclass(frozen=True)
class _Build:
    """Stands for a run (privlm.llm.opening.Run). directory: of the record."""

    directory: Path
    run_hash: str = CACHE
    stop: Any = field(default_factory=lambda: SimpleNamespace(signum=0))  # Ctrl-C ends it, what was asked is kept

    def say(self, message: str) -> None:
        print(message)

    def note(self, *notes: str) -> None:
        for note in notes:
            print(note)


# --- files ----------------------------------------------------------------------------------------------------------


def _write(folder: Path, rows: Sequence[ImageRow], root: Path) -> None:
    """The image files as they are, under their names. A column `split` only where the images had one: else a run may
    draw its own.
    """
    is_split = any(row.split != SPLITS[0] for row in rows)
    lines = []
    for row in rows:
        assert row.file is not None
        name = row.file.relative_to(root)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(row.file, folder / name)
        said = {"file_name": name.as_posix(), "text": row.text, "prompt": row.prompt}
        lines.append(json.dumps(said | ({"split": row.split} if is_split else {}), ensure_ascii=False) + "\n")
    files.write_text(folder / "metadata.jsonl", "".join(lines))


BUILDERS = {"surd": surd}
