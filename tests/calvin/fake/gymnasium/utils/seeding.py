import numpy as np


def np_random(seed):
    return np.random.default_rng(seed), seed
