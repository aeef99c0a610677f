"""A merge method, a checkpoint format and a report for vcjax; pyproject.toml names them."""
