"""The LaTeX commands, sorted by what a command means for the value of an answer."""

from __future__ import annotations

_NO_MEANING = """
    left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr bigm Bigm displaystyle textstyle
    scriptstyle limits nolimits tiny scriptsize footnotesize small normalsize large Large LARGE huge Huge bf it rm sf tt
    sl sc em bfseries itshape rmfamily boldmath mathstrut strut checkmark square blacksquare Box qed nonumber notag
    hfill noindent centering newline relax therefore because ! ( ) [ ]
"""
_WHITE_SPACE = ", ; : > quad qquad thinspace enspace medspace thickspace space"
_AROUND_MATHEMATICS = """
    mathbf boldsymbol bm pmb mathit mathsf mathtt mathcal mathscr mathfrak mathnormal underline uline emph boxed fbox
    framebox mathop mathbin textcolor color colorbox ensuremath vec overrightarrow
"""
_AROUND_TEXT = """
    text textrm textbf textit textsf texttt textnormal textup textsc textsl mathrm mbox hbox operatorname operatorname*
"""
_WITH_ARGUMENT = "phantom hphantom vphantom hspace hspace* vspace label tag tag*"

#: Commands without a meaning.
DROPPED = frozenset(_NO_MEANING.split())
#: Commands without a meaning, with an argument without a meaning.
DROPPED_WITH_ARGUMENT = frozenset(_WITH_ARGUMENT.split())
SPACES = frozenset({*_WHITE_SPACE.split(), " ", "\n", "\t"})
#: Commands around mathematics. The colours have a first argument without a meaning.
FONTS = frozenset(_AROUND_MATHEMATICS.split())
COLORS = frozenset({"textcolor", "color", "colorbox"})
#: Commands around text.
TEXTS = frozenset(_AROUND_TEXT.split())
#: Commands with the meaning of a sign.
MARKS = {
    **{"{": "\\{", "}": "\\}", "lbrace": "\\{", "rbrace": "\\}", "$": "$", "textdollar": "$", "%": "%", "_": "_"},
    **{"|": "|", "vert": "|", "lvert": "|", "rvert": "|", "Vert": "|", "mid": ":", "\\": "\\\\", "#": "#"},
    **{"lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")", "colon": ":", "prime": "'", "degree": "°"},
    **{"le": "<=", "leq": "<=", "leqslant": "<=", "leqq": "<=", "lt": "<", "gt": ">", "ne": "!=", "neq": "!="},
    **{"ge": ">=", "geq": ">=", "geqslant": ">=", "geqq": ">=", "cdot": "*", "times": "*", "ast": "*", "div": "/"},
    **{"pm": "±", "mp": "∓", "dots": "...", "ldots": "...", "cdots": "...", "dotsc": "...", "dotsb": "..."},
}
#: Commands with the meaning of a word.
WORDS = {"lor": "or", "vee": "or", "land": "and", "wedge": "and", "&": "and"}
#: Commands with the meaning of another command.
COMMANDS = {
    **{
        "dfrac": "frac",
        "tfrac": "frac",
        "cfrac": "frac",
        "nicefrac": "frac",
        "sfrac": "frac",
        "dbinom": "binom",
        "tbinom": "binom",
        "lg": "log",
    },
    **{"varnothing": "emptyset", "oo": "infty", "textpi": "pi", "R": "reals", "Bbb": "mathbb", "mathds": "mathbb"},
    **{"smallsetminus": "setminus", "backslash": "setminus", "bigcup": "cup", "bigcap": "cap", "rightarrow": "to"},
    **{"Rightarrow": "implies", "widehat": "hat", "widetilde": "tilde", "varphi": "phi", "varepsilon": "epsilon"},
    **{"overbar": "overline"},
}
