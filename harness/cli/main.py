"""The command line. Commands import modules on first use: ``list`` and ``--help`` never import torch.

Exit codes: 0 all done · 1 some cell failed · 2 interrupted, state saved · 3 internal error or full disk ·
4 usage or configuration error, or rows that may not be compared · 5 nothing selected · 6 a gate tripped ·
7 a submission or a conformance check does not hold.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from ..errors import INTERNAL, INTERRUPTED, USAGE, HarnessError
from .author import check_component, new, schema
from .output import complain, say
from .results import compare, import_scores, publish, render, results, score
from .run import bench_gpu, cache, cancel, demo, meta_evaluate, plan, run, run_cell, run_nodes
from .show import list_components, show
from .submit import bundle, rescore, verify


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="unlearnbench")
def cli() -> None:
    """Benchmark unlearning methods for large language models."""


for _command in (
    list_components,
    show,
    plan,
    run,
    demo,
    meta_evaluate,
    render,
    publish,
    results,
    import_scores,
    compare,
    score,
    bundle,
    verify,
    rescore,
    new,
    check_component,
    cache,
    bench_gpu,
    cancel,
    run_cell,
    run_nodes,
    schema,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; prints every expected error as one line on stderr."""
    try:
        code = cli.main(args=list(arguments), prog_name="unlearnbench", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except HarnessError as error:
        return complain(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.ctx.get_help() if error.ctx else error.format_message())
        return 0
    except click.ClickException as error:
        return complain(error.format_message(), USAGE)
    except (KeyboardInterrupt, click.Abort):
        return complain("interrupted; what is finished is kept, and the same command resumes", INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) closed the pipe: discard the rest of the output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:  # noqa: BLE001 - an unexpected error must give one line and its own exit code
        import traceback

        traceback.print_exc()
        return complain(f"internal error: {type(error).__name__}: {error}", INTERNAL)
