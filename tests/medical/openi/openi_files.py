"""Synthetic reports and images of IU X-Ray (Open-i) for tests."""

from pathlib import Path

SECTIONS = {
    "COMPARISON": "XXXX.",
    "INDICATION": "Pain.",
    "FINDINGS": "Clear lungs.",
    "IMPRESSION": "Normal XXXX chest.",
}
IMAGES = ("1_IM-0001-3001", "1_IM-0001-4001")


def report_xml(number: int, images: tuple[str, ...] = IMAGES, uid: str | None = None, **changes: str | None) -> bytes:
    """Return a report; `changes` are texts of sections, None for no section."""
    sections = {name: text for name, text in {**SECTIONS, **changes}.items() if text is not None}
    texts = "".join(f'<AbstractText Label="{name}">{text}</AbstractText>' for name, text in sections.items())
    images = "".join(
        f'<parentImage id="CXR{number}_{image}"><caption>Chest</caption></parentImage>' for image in images
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="{uid or f"CXR{number}"}"/>'
        f"<MedlineCitation><Article><Abstract>{texts}</Abstract></Article></MedlineCitation>{images}</eCitation>"
    ).encode()


def add_report(root: Path, number: int, report: bytes, images: tuple[str, ...] = IMAGES) -> None:
    """Write a report and its images below `root`, unpacked as published."""
    (root / "reports" / "ecgen-radiology").mkdir(parents=True, exist_ok=True)
    (root / "reports" / "ecgen-radiology" / f"{number}.xml").write_bytes(report)
    (root / "png").mkdir(exist_ok=True)
    for image in images:
        (root / "png" / f"CXR{number}_{image}.png").write_bytes(b"png")
