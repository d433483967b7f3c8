"""speechlab: learn and do speech machine learning, one staged recipe a task."""

__version__ = "0.1.0"
