"""The parts of the `labeling` benchmark: a large record, a crowd over HTTP, the site's servers."""
