"""`python -m qwen3` is the `qwen3` command."""

import sys

from qwen3.cli.main import main

sys.exit(main())
