"""What the top-level scripts and the `cds3d` command call."""
