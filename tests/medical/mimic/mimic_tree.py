"""A MIMIC-CXR tree of chosen studies for tests: the same names and columns, one line of code a study."""

import csv
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

METADATA = "dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime,ViewCodeSequence_CodeMeaning"
REPORT = (
    "                                 FINAL REPORT\n INDICATION:  Cough.\n \n COMPARISON:  None.\n \n"
    " FINDINGS: \n \n The lungs of study {study}\n are clear.\n \n IMPRESSION: \n \n Normal chest {study}.\n"
)


@dataclass
class Tree:
    """Collects studies; `write` puts the tables beside `files/` and the reports into it."""

    root: Path
    split_rows: list[str] = field(default_factory=list)
    metadata_rows: list[str] = field(default_factory=list)
    reports: dict[str, bytes] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)

    def study(
        self,
        subject: int,
        study: int,
        views: str = "PA",
        split: str = "train",
        taken: str = "21800101,80000.5",
        report: str | bytes | None = REPORT,
    ) -> "Tree":
        """Add one study with an image d<study>-<n> for each of the comma-separated views; "-" is a blank view."""
        folder = f"p{str(subject)[:2]}/p{subject}"
        for number, view in enumerate(views.split(",")):
            dicom = f"d{study}-{number}"
            self.split_rows.append(f"{dicom},{study},{subject},{split}")
            self.metadata_rows.append(f"{dicom},{subject},{study},{view.strip('-')},{taken},")
            self.images[f"{folder}/s{study}/{dicom}.jpg"] = b"jpeg"
        if report is not None:
            text = report if isinstance(report, bytes) else report.replace("{study}", str(study)).encode()
            self.reports[f"{folder}/s{study}.txt"] = text
        return self

    def write(self, zip_root: str | None = None) -> Path:
        """Write everything; with `zip_root` the reports go into reports.zip below that folder. Returns the root."""
        self.root.mkdir(exist_ok=True)
        table = self.root / "mimic-cxr-2.0.0-split.csv"
        table.write_text("\n".join(["dicom_id,study_id,subject_id,split", *self.split_rows]) + "\n")
        table = self.root / "mimic-cxr-2.0.0-metadata.csv"
        table.write_text("\n".join([METADATA, *self.metadata_rows]) + "\n")
        for name, data in [*self.images.items(), *(self.reports.items() if zip_root is None else ())]:
            path = self.root / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if zip_root is not None:
            with zipfile.ZipFile(self.root / "reports.zip", "w") as archive:
                for name, data in self.reports.items():
                    archive.writestr(f"{zip_root}{name}", data)
        return self.root


def read_stats(folder: Path) -> dict[str, Any]:
    """Return the counts of an output folder."""
    return json.loads((folder / "stats.json").read_text())


def read_dropped(folder: Path) -> dict[str, str]:
    """Return the reason of each dropped study of an output folder, by study id."""
    with open(folder / "mimic_dropped.csv", newline="") as stream:
        return {row["study_id"]: row["reason"] for row in csv.DictReader(stream)}
