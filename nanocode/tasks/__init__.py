"""Tasks for a coding agent: generated from a seed, each with a check that looks at what the agent left behind."""
