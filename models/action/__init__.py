"""Action heads: hidden states at the <|lvg|> slots -> a chunk of T continuous actions."""

from models.action.head import ActionHead, PooledRegression

__all__ = ["ActionHead", "PooledRegression"]
