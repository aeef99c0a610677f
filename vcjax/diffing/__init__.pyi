from .comparing import compare as compare
from .statistics import leaf_statistics as leaf_statistics
from .treediff import LeafChange as LeafChange
from .treediff import TreeDiff as TreeDiff
from .trees import diff as diff
