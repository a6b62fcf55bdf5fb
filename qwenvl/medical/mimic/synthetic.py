"""Build a synthetic MIMIC-CXR with the file names, columns and irregularities of the published one.

Images are drawn and reports invented: nothing comes from a patient. Tests, and users without access yet, can run every
step on the real layout.
"""

import gzip
import hashlib
import io
import random
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFilter

from qwenvl.errors import UserError
from qwenvl.medical.mimic.tables import LABEL_TABLES
from qwenvl.utils.cli import progress

FINDINGS = {
    "Cardiomegaly": ("The heart is moderately enlarged.", "The heart size is normal."),
    "Pleural Effusion": ("There is a small left pleural\n effusion.", "No pleural effusion is seen."),
    "Pneumothorax": ("A small right apical pneumothorax is present.", "There is no pneumothorax."),
    "Lung Opacity": ("There is a patchy opacity in the right lower lobe.", "The lungs are clear."),
    "Support Devices": ("A left chest pacemaker ends in the right\n ventricle.", "No lines or tubes are present."),
}
LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
_INDICATIONS = (
    "___-year-old with cough and fever.",
    "___F with chest pain, evaluate\n for pneumonia.",
    "Shortness of breath.",
)
_METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
_VIEW_WORDS = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral", "LL": "left lateral", "": ""}
_VIEW_SETS = (("PA", "LATERAL"), ("AP",), ("PA", "LL"), ("AP", "AP"), ("PA", ""))
_IMAGE_POOL = 32
# Height and width of the largest published images are below 4,000 pixels.
_MAX_IMAGE_SIZE = 8192


@dataclass(frozen=True)
class SyntheticOptions:
    """What to build.

    Attributes:
        studies: The number of studies.
        seed: The seed of everything that is random.
        image_size: Height and width of the images in pixels.
        zip_reports: Write the reports as a zip, not as files.
        gzip_tables: Compress the tables.

    Raises:
        UserError: For images that are too large.
    """

    studies: int = 24
    seed: int = 0
    image_size: int = 64
    zip_reports: bool = False
    gzip_tables: bool = True

    def __post_init__(self) -> None:
        if self.image_size > _MAX_IMAGE_SIZE:
            raise UserError(f"--film_size {self.image_size}: give at most {_MAX_IMAGE_SIZE} pixels")


class Study(NamedTuple):
    """One invented study; `images` are (dicom id, view), `present` the findings."""

    subject_id: int
    study_id: int
    split: str
    images: tuple[tuple[str, str], ...]
    present: frozenset[str]
    date: int
    time: float


def build_synthetic_mimic(root: Path, options: SyntheticOptions = SyntheticOptions()) -> Path:  # noqa: B008
    """Write the tables, the images in `files/`, and the reports (also in `files/`, or as mimic-cxr-reports.zip).

    The same options give the same bytes. Returns `root`; raises `UserError` for a folder that is not
    empty or cannot be made.
    """
    _make_empty_folder(root)
    rng = random.Random(options.seed)
    pool = [_jpeg(rng, options.image_size, enlarged=bool(number % 2)) for number in range(_IMAGE_POOL)]
    tables: dict[str, list[str]] = {"split": ["dicom_id,study_id,subject_id,split"], "metadata": [_METADATA]}
    tables |= {table: [",".join(("subject_id", "study_id", *LABELS))] for table in LABEL_TABLES}
    with _report_writer(root, options.zip_reports) as reports:
        for study in progress(_studies(rng, options.studies), "synthetic", "study", options.studies):
            _add_rows(tables, study)
            _write_images(root, study, pool)
            reports.write(
                f"p{str(study.subject_id)[:2]}/p{study.subject_id}/s{study.study_id}.txt", _report(rng, study)
            )
    for name, lines in tables.items():
        data = ("\n".join(lines) + "\n").encode()
        path = root / f"mimic-cxr-2.0.0-{name}.csv"
        if options.gzip_tables:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(data, mtime=0))
        else:
            path.write_bytes(data)
    return root


def _make_empty_folder(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        is_empty = not any(root.iterdir())
    except OSError as error:
        raise UserError(f"{root}: cannot make the folder ({error.strerror}); give another --out") from None
    if not is_empty:
        raise UserError(f"{root} is not empty; give an empty or a new folder for the synthetic tree")


def draw_xray(rng: random.Random, size: int, enlarged: bool = False) -> Image.Image:
    """Return a gray image (mode L, `size` x `size`) that resembles a frontal chest X-ray."""
    image = Image.new("L", (size, size), 20)
    brush = ImageDraw.Draw(image)
    shift = rng.uniform(-0.02, 0.02)

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
        return tuple((edge + shift) * size for edge in (left, top, right, bottom))

    brush.rounded_rectangle(box(0.08, 0.04, 0.92, 1.1), radius=size // 5, fill=150)
    brush.ellipse(box(0.14, 0.12, 0.46, 0.82), fill=45 + rng.randrange(25))
    brush.ellipse(box(0.54, 0.12, 0.86, 0.82), fill=45 + rng.randrange(25))
    brush.rectangle(box(0.47, 0.0, 0.53, 0.95), fill=190)
    for rib in range(6):
        brush.arc(box(0.12, 0.14 + rib * 0.1, 0.88, 0.4 + rib * 0.1), 200, 340, fill=120, width=max(1, size // 64))
    brush.ellipse(box(0.42, 0.5, 0.8 if enlarged else 0.66, 0.85), fill=205)
    return image.filter(ImageFilter.GaussianBlur(size / 96))


def _jpeg(rng: random.Random, size: int, enlarged: bool) -> bytes:
    data = io.BytesIO()
    draw_xray(rng, size, enlarged).save(data, "JPEG", quality=90)
    return data.getvalue()


def _add_comment(jpeg: bytes, text: str) -> bytes:
    """Insert a JPEG comment: in a real archive, no two images have the same bytes."""
    data = text.encode("ascii")
    return jpeg[:2] + b"\xff\xfe" + (len(data) + 2).to_bytes(2, "big") + data + jpeg[2:]


def _studies(rng: random.Random, number: int) -> Iterator[Study]:
    """Invent studies, patient by patient; a patient has one split, one to five studies, and increasing ids."""
    count, patient = 0, 0
    while count < number:
        # Folders p10 to p19 of about equal size, as in the published tree.
        subject_id = 10_000_032 + patient * 7_919 % 9_999_000
        split = (
            rng.choices(("train", "validate", "test"), (96, 2, 2))[0]
            if patient > 2
            else ("train", "validate", "test")[patient]
        )
        for _ in range(min(rng.choice((1, 1, 2, 5)), number - count)):
            study_id = 50_000_000 + count * 37
            yield Study(
                subject_id, study_id, split,
                images=tuple(
                    (_dicom_id(study_id, number), view) for number, view in enumerate(rng.choice(_VIEW_SETS))
                ),
                present=frozenset(name for name in FINDINGS if rng.random() < 0.3),
                date=21_000_101 + count, time=round(rng.uniform(0, 235_959), 3),
            )  # fmt: skip
            count += 1
        patient += 1


def _dicom_id(study_id: int, number: int) -> str:
    digest = hashlib.sha256(f"{study_id} {number}".encode()).hexdigest()
    return "-".join(digest[start : start + 8] for start in range(0, 40, 8))


def _add_rows(tables: dict[str, list[str]], study: Study) -> None:
    for dicom_id, view in study.images:
        tables["split"].append(f"{dicom_id},{study.study_id},{study.subject_id},{study.split}")
        # As in the published table, some images have a blank position, and the view only in words.
        position = view if study.study_id % 3 else ""
        tables["metadata"].append(
            f"{dicom_id},{study.subject_id},{study.study_id},CHEST (PA AND LAT),{position},3056,2544,{study.date},"
            f"{study.time},CHEST (PA AND LAT),{_VIEW_WORDS[view]},Erect"
        )
    cells = ["1.0" if name in study.present else "0.0" if name in FINDINGS else "" for name in LABELS]
    for table in LABEL_TABLES:
        tables[table].append(",".join((str(study.subject_id), str(study.study_id), *cells)))


def _write_images(root: Path, study: Study, pool: list[bytes]) -> None:
    folder = root / "files" / f"p{str(study.subject_id)[:2]}" / f"p{study.subject_id}" / f"s{study.study_id}"
    folder.mkdir(parents=True)
    suitable = [jpeg for number, jpeg in enumerate(pool) if number % 2 == ("Cardiomegaly" in study.present)]
    for number, (dicom_id, _) in enumerate(study.images):
        jpeg = suitable[(study.study_id + number) % len(suitable)]
        (folder / f"{dicom_id}.jpg").write_bytes(_add_comment(jpeg, dicom_id))


def _report(rng: random.Random, study: Study) -> str:
    """Return a report with the headers, indents and line breaks of the published ones."""
    findings = [texts[0] if name in study.present else texts[1] for name, texts in FINDINGS.items()]
    impression = "\n ".join(texts[0] for name, texts in FINDINGS.items() if name in study.present)
    header = rng.choice(("INDICATION", "HISTORY", "REASON FOR EXAMINATION"))
    body = [
        f"EXAMINATION:  CHEST ({'PA AND LAT' if len(study.images) > 1 else 'PORTABLE AP'})",
        f"{header}:  {rng.choice(_INDICATIONS)}",
        f"TECHNIQUE:  {rng.choice(('Chest PA and lateral', 'Portable chest AP'))}",
        f"COMPARISON:  {rng.choice(('None.', 'Chest radiograph from ___.'))}",
    ]
    if rng.random() < 0.9:
        body.append("FINDINGS: \n \n " + "\n ".join(findings))
    body.append(f"IMPRESSION: \n \n {impression or 'No acute cardiopulmonary process.'}")
    return " " * 33 + "FINAL REPORT\n " + "\n \n ".join(body) + "\n"


class _FolderWriter(AbstractContextManager["_FolderWriter"]):
    def __init__(self, root: Path):
        self._root = root

    def write(self, name: str, text: str) -> None:
        (self._root / "files" / name).write_text(text, encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        pass


class _ZipWriter(AbstractContextManager["_ZipWriter"]):
    def __init__(self, root: Path):
        self._archive = zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED)

    def write(self, name: str, text: str) -> None:
        self._archive.writestr(zipfile.ZipInfo(f"files/{name}"), text)

    def __exit__(self, *_: object) -> None:
        self._archive.close()


def _report_writer(root: Path, packed: bool) -> "_FolderWriter | _ZipWriter":
    return _ZipWriter(root) if packed else _FolderWriter(root)
