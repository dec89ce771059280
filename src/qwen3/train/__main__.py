"""`python -m qwen3.train RECIPE [key=value …]`: `qwen3 train` where torch, numpy, tokenizers and safetensors are all
there is."""

from __future__ import annotations

import sys

from qwen3.errors import Qwen3Error
from qwen3.train.start import main

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Qwen3Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
