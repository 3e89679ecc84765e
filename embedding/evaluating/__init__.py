"""Evaluation of vectors on labels: which model, which layer tells my labels apart best?"""

CLASSIFIERS = ("logistic", "knn", "mlp")
