"""Convert MIMIC-CXR-JPG and LLaVA-Rad."""
