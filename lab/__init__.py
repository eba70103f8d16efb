"""The gradient lab: study, trace, check and practise every gradient by hand.

import lab
lab.explain("softmax")             in a notebook, or python -m lab explain softmax
"""

from lab.checking import check
from lab.comparison import compare
from lab.exercises.grading import exercise, grade, ladder
from lab.explanation import explain
from lab.fp8_page import fp8
from lab.overview import overview as list
from lab.report_page import report
from lab.tracing import trace

__all__ = ["check", "compare", "exercise", "explain", "fp8", "grade", "ladder", "list", "report", "trace"]
