"""Action heads: hidden states at the <|lvg|> slots -> a chunk of T continuous actions."""

from models.heads.pooling import ActionHead, PooledRegression

__all__ = ["ActionHead", "PooledRegression"]
