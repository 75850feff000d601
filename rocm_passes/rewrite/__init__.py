"""The data model of a match, the choice of a lowering, and the rewriter. Knows no idiom."""
