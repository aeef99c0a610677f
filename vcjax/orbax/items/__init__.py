"""The items of a step: how they lie in a commit, and how handlers save and restore them."""
