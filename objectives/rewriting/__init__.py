"""The user's trained model in every form that could be fast, each judged against the original."""
