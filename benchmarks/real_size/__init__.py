"""A rehearsal with models of the released sizes and random weights: training, resuming, acting, answering, serving."""
