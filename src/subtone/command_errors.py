"""How a command ends that cannot do what it was asked: one line on stderr, exit code 1 or 2.

2 is misuse: another command line or another file helps. 1 is failure: the machine could not (a full
disk, no rights, no memory), or Ctrl-C. A warning is such a line too, and the command goes on.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

UsageError: Any = typer.BadParameter.__base__  # an unknown option and the like; typer exports no name for it
WRONG_PATH = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")
"""What torch says in a RuntimeError, on a GPU and on a CPU; it has no class of error for the latter."""


class OneLineErrors(TyperGroup):
    """Commands whose every mistake ends in one line on stderr and an exit code."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _one_line_errors():
            return super().make_context(*args, **kwargs)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:
            print(self.get_help(ctx), file=sys.stderr)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _one_line_errors():
            return super().invoke(ctx)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            yield
        sys.stdout.flush()  # here, where a full disk is one line, and not when Python ends
    except KeyboardInterrupt as interrupt:
        _fail(f"interrupted; {str(interrupt) or 'nothing was left half-written'}", 1)
    except UsageError as error:
        text = error.format_message().strip().rstrip(".")
        command = error.ctx.command_path if error.ctx else "subtone"
        see = " See" if text.endswith("?") else "; see"
        _fail(f"{text[:1].lower()}{text[1:]}{see} `{command} --help`", 2)
    except ValueError as error:
        _fail(str(error), 2)
    except ImportError as error:
        _fail(f'{error}; this command needs more: pip install "subtone[train,peers,report]"', 1)
    except BrokenPipeError:
        # Whoever reads stdout has seen enough (`| head`); what is still to be flushed must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        has_path = error.filename is not None and error.strerror is not None
        text = f"{error.filename}: {error.strerror}" if has_path else str(error)
        _fail(text or type(error).__name__, 2 if isinstance(error, WRONG_PATH) else 1)
    except MemoryError as error:
        _fail(str(error) or "out of memory", 1)
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        _fail(f"out of memory: {str(error).splitlines()[0]}", 1)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """In place of `warnings.showwarning`, which prints a path and a line of source."""
    complain(str(message))


def _fail(text: str, code: int) -> NoReturn:
    complain(text)
    raise SystemExit(code)


def complain(text: str) -> None:
    """One line on stderr."""
    print(f"subtone: {' '.join(text.split())}", file=sys.stderr)
