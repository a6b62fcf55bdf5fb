"""Convert IU X-Ray (Open-i)."""
