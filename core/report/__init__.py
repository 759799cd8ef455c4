"""What a run leaves behind: report, page, model card, written whole or not at all."""
