"""A recipe put into practice: structures, precisions, and the search over them."""
