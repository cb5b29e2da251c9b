"""Visual question answering benchmarks: questions, inference, scores, results."""
