"""Stands for a missing torch: importing it fails."""

raise ModuleNotFoundError("No module named 'torch'", name="torch")
