"""Of gymnasium, what calvin_env uses of gym."""


class Env:
    pass
