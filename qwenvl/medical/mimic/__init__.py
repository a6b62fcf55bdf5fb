"""Convert MIMIC-CXR-JPG and the LLaVA-Rad annotations of it."""
