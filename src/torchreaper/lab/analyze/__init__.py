"""The paper's analyses (section 7) of networks that were trained, with RePr or not: overlap, oracle, criteria, CCA."""

from torchreaper.lab.analyze.compute import Analysis as Analysis
from torchreaper.lab.analyze.compute import Look as Look
from torchreaper.lab.analyze.compute import analyze as analyze
from torchreaper.lab.analyze.compute import subjects_of as subjects_of
from torchreaper.lab.analyze.settings import Settings as Settings
from torchreaper.lab.analyze.subjects import Subject as Subject
from torchreaper.lab.analyze.subjects import find_subjects as find_subjects
from torchreaper.lab.analyze.tables import accuracy_lines as accuracy_lines
from torchreaper.lab.analyze.tables import agreement_table as agreement_table
from torchreaper.lab.analyze.tables import layer_table as layer_table
from torchreaper.lab.analyze.tables import pooled as pooled
from torchreaper.lab.analyze.tables import write as write
