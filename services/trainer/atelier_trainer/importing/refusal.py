"""The one way an import says no."""

from __future__ import annotations


class ImportRefused(Exception):
    """What is wrong with the model or the request, naming the file and the field; the message is for people."""
