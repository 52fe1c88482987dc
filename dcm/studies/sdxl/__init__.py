"""The paper's own setting: SDXL."""
