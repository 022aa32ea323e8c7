"""The command line. Commands import modules on first use: ``list`` and ``--help`` never import torch.

Exit codes: 0 all done · 1 some cell failed · 2 interrupted, state saved · 3 internal error or full disk ·
4 usage or configuration error, or rows that may not be compared · 5 nothing selected · 6 a gate tripped ·
7 a submission or a conformance check does not hold.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

import click

from ..errors import INTERNAL, INTERRUPTED, USAGE, HarnessError
from .author import check_component, new, schema
from .output import complain, say
from .results import compare, import_scores, publish, render, results, score
from .run import bench_gpu, cache, cancel, demo, meta_evaluate, plan, run, run_cell, run_nodes
from .show import list_components, show
from .submit import bundle, rescore, verify

SECTIONS: Mapping[str, Mapping[click.Command, str]] = {
    "Look": {
        list_components: "methods, benchmarks, attacks, models and plugins",
        show: "one of them, or the papers' tables",
        plan: "what a study would run, and what it takes",
    },
    "Run": {
        demo: "every method on generated data, in minutes",
        run: "a study; the same command resumes",
        cancel: "what a cluster holds of a study",
        cache: "the prepared reference models",
        meta_evaluate: "how far each metric can be trusted",
        bench_gpu: "how near this device comes to what it can do",
    },
    "Results": {
        results: "tables in the terminal, or JSON",
        compare: "two results with paired intervals, and gates",
        render: "pages, or files for other tools",
        publish: "pages to a folder, gh-pages or a Space",
        import_scores: "scores from other tools' formats",
        score: "scores from a publisher's log",
    },
    "Hand in and check": {
        bundle: "a run as one file",
        verify: "every score again from its samples",
        rescore: "a run again after a metric changed",
    },
    "Write your own": {
        new: "a method, benchmark or attack with tests, or a leaderboard",
        check_component: "what a component promises",
        schema: "the JSON Schema of a record",
    },
}
HIDDEN = (run_cell, run_nodes)
WIDTH = max(len(str(command.name)) for commands in SECTIONS.values() for command in commands)
EXAMPLES = """\b
Examples:
  unlearnbench demo --quick                                every method, no GPU, no network
  unlearnbench run -m npo -m flat-js -b tofu-forget05 --model llama3.2-1b
  unlearnbench plan study.toml                             what would run, and what it takes
  unlearnbench compare before after                        two runs, with paired intervals
  unlearnbench new method my-method                        a package of your own

\b
Completion in the shell (zsh and fish likewise):
  eval "$(_UNLEARNBENCH_COMPLETE=bash_source unlearnbench)"
"""


class _Sections(click.Group):
    """Lists commands by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(str(command.name).ljust(WIDTH), words) for command, words in commands.items()])


@click.group(
    cls=_Sections,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXAMPLES,
)
@click.version_option(None, "-V", "--version", package_name="unlearnbench")
@click.option("--no-color", is_flag=True, help="Write without colours, as NO_COLOR=1 does.")
def cli(no_color: bool) -> None:
    """Benchmark unlearning methods for large language models."""
    if no_color:
        # rich and click look there; so do the processes of cells.
        os.environ["NO_COLOR"] = "1"


for _command in (*(command for commands in SECTIONS.values() for command in commands), *HIDDEN):
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
