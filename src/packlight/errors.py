"""The errors a user may meet, as one tree.

    PacklightError              exit status 2
    |-- WrongUsage              options that contradict each other or make no sense
    |-- UnusableModel           a model file that cannot be read, checked or run
    |   `-- UnsupportedOperator a graph with an operator that PyTorch is not given
    |-- UnusableSamples         samples that do not fit the model, or are broken
    |-- UnusableRecipe          a recipe that names what does not exist
    |-- UnusableOutput          an output folder that exists or cannot be written
    |-- UnusablePack            a transport file, or a folder for one, that cannot be used
    |-- UnusableProof           a folder that `verify` cannot check
    |-- MissingExtra            an optional package that is not installed
    `-- RuntimeFailure          the runtime could not run a file
        |-- RuntimeRefused      it said so
        |-- RuntimeCrashed      its process died
        |-- RuntimeTimedOut     it took longer than its limit
        `-- RuntimeOutOfMemory  it needed more than its limit

Every message is one sentence or two: what was found, what was expected, which
file or tensor, and what to do next.
"""

from __future__ import annotations


class PacklightError(Exception):
    """Anything packlight refuses with a sentence for the user."""


class WrongUsage(PacklightError):
    """Options that contradict each other or make no sense."""


class UnusableModel(PacklightError):
    """A model file that cannot be read, checked or run."""


class UnsupportedOperator(UnusableModel):
    """A graph with an operator that cannot be computed in PyTorch: it is not healed."""


class UnusableSamples(PacklightError):
    """Samples that do not fit the model, or are broken."""


class UnusableRecipe(PacklightError):
    """A recipe that names what does not exist."""


class UnusableOutput(PacklightError):
    """An output folder that exists or cannot be written."""


class UnusablePack(PacklightError):
    """A transport file that is damaged, or a folder that cannot become one."""


class UnusableProof(PacklightError):
    """A folder without a manifest, or with one that cannot be used."""


class MissingExtra(PacklightError):
    """An optional package that is not installed."""


class RuntimeFailure(PacklightError):
    """The runtime could not run a file."""


class RuntimeRefused(RuntimeFailure):
    """The runtime said that it cannot run the file or the inputs."""


class RuntimeCrashed(RuntimeFailure):
    """The process that ran the file died."""


class RuntimeTimedOut(RuntimeFailure):
    """Running the file took longer than its limit."""


class RuntimeOutOfMemory(RuntimeFailure):
    """Running the file needed more memory than its limit."""
