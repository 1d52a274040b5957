"""Questions about pictures: where they are from, how they become numbers, and how right an answer is."""

from torchreaper.lab.data.questions.answers import KINDS as KINDS
from torchreaper.lab.data.questions.answers import normalise as normalise
from torchreaper.lab.data.questions.load import QuestionsData as QuestionsData
from torchreaper.lab.data.questions.load import load_questions as load_questions
from torchreaper.lab.data.questions.score import accuracy as accuracy
from torchreaper.lab.data.questions.spec import QuestionsSpec as QuestionsSpec
from torchreaper.lab.data.questions.split import Questions as Questions
from torchreaper.lab.data.questions.words import tokenise as tokenise
