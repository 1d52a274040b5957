"""Channel flow: which channels of which tensor come from which filter.

Words first (:mod:`channels`), then the way they are found: tracing the model (:mod:`tracing`), the table of operations
(:mod:`operations`), the walk over a graph (:mod:`walk`) with its rules (:mod:`reading`, :mod:`moving`), and what cannot
be traced (:mod:`recording`, :mod:`rows`).
"""

from torchreaper.flow.channels import Flow as Flow
from torchreaper.flow.channels import Share as Share
from torchreaper.flow.channels import Site as Site
from torchreaper.flow.find import find_flow as find_flow
