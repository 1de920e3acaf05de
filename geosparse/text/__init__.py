"""Text for measuring: documents, the token windows cut from them, and the built-in kinds of text."""

from __future__ import annotations

from .documents import PARTS, check_text, load_texts, text_sha256, token_windows

__all__ = ["PARTS", "check_text", "load_texts", "text_sha256", "token_windows"]
