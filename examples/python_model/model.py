"""A model that says in which language a text is written. Each worker is a Python process that has loaded it once.

It stands for a real one: it takes a moment to load, and then answers fast.
"""

import math
import os
from typing import Dict, List, Union

from taskfork.worker import serve

SAMPLES = {
    "en": "the quick brown fox jumps over the lazy dog and then it runs through the old forest where nobody "
    "can see what it does with the bones that were left there by other animals",
    "de": "der schnelle braune fuchs springt über den faulen hund und läuft dann durch den alten wald, in dem "
    "niemand sehen kann, was er mit den knochen macht, die andere tiere dort gelassen haben",
    "fr": "le renard brun et rapide saute par dessus le chien paresseux et court ensuite dans la vieille forêt "
    "où personne ne peut voir ce qu'il fait avec les os que les autres animaux y ont laissés",
}

# How often the samples are learned.
ROUNDS = 40


def trigrams(text: str) -> List[str]:
    text = f"  {text.lower()}  "
    return [text[place : place + 3] for place in range(len(text) - 2)]


class Model:
    """A linear model of trigrams."""

    def __init__(self) -> None:
        self._weights: Dict[str, Dict[str, float]] = {language: {} for language in SAMPLES}
        self._answered = 0
        for _ in range(ROUNDS):
            for language, sample in SAMPLES.items():
                words = sample.split()
                for place in range(len(words) - 2):
                    self._learn(language, trigrams(" ".join(words[place : place + 3])))

    def language(self, text: str) -> Dict[str, Union[str, float, int]]:
        """The language of a text, how probable it is, and which worker says so, for the how manyth time."""
        if len(text.split()) < 3:
            raise ValueError("a text needs three words or more")
        probabilities = self._probabilities(trigrams(text))
        language = max(probabilities, key=lambda language: probabilities[language])
        self._answered += 1
        return {
            "language": language,
            "probability": round(probabilities[language], 3),
            "worker": os.getpid(),
            "answered": self._answered,
        }

    def _probabilities(self, features: List[str]) -> Dict[str, float]:
        sums = {
            language: sum(weights.get(feature, 0.0) for feature in features) / math.sqrt(len(features))
            for language, weights in self._weights.items()
        }
        largest = max(sums.values())
        powers = {language: math.exp(total - largest) for language, total in sums.items()}
        return {language: power / sum(powers.values()) for language, power in powers.items()}

    def _learn(self, actual: str, features: List[str]) -> None:
        """One step of gradient descent."""
        for language, probability in self._probabilities(features).items():
            step = 0.1 * ((language == actual) - probability)
            weights = self._weights[language]
            for feature in features:
                weights[feature] = weights.get(feature, 0.0) + step


if __name__ == "__main__":
    serve(Model)
