"""`python -m cds3d COMMAND` is `cds3d COMMAND`."""

from cds3d.cli import main

raise SystemExit(main())
