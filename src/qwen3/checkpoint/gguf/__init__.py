"""GGUF files, versions 2 and 3: header, tensor types, configuration, names, tokenizer, split files.

Format: docs/gguf.md of ggml-org/ggml; block layouts: ggml-common.h of the same repository.
"""
