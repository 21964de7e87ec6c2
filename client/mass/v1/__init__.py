"""Generated from proto/mass/v1 when MASS is built; only this file is written by people."""
