"""One file per family of cleaning rules; each registers itself in `danlu.data.clean.filter.FILTERS`."""
