"""Sentence frames for questions about a topic; {x} and {y} are names of topics."""

from __future__ import annotations

DEFINE = (
    *("What is {x}?", "what is {x}", "What's {x}?", "whats {x}", "Explain {x}.", "Define {x}."),
    *("Can you explain {x}?", "Could you explain {x} to me?", "Tell me about {x}.", "{X}?", "{X}"),
    *("What does {x} mean?", "Please explain {x}.", "How would you describe {x}?", "and {x}?"),
    *("I would like to know what {x} is.", "Do you know what {x} is?", "What is {x} for?"),
    *(
        "Explain {x} in simple words.",
        "What do you know about {x}?",
        "Give me a definition of {x}.",
    ),
    *("What exactly is {x}?", "So what is {x}?", "I don't understand {x}.", "Teach me about {x}."),
    *("Help me understand {x}.", "what do people mean by {x}?", "Can you tell me what {x} is?"),
    *("Please tell me about {x}.", "What is {x} in Cloister?", "What is meant by {x}?"),
    *("Why is {x} useful?", "Why does {x} matter?", "What is {x} good for?", "How does {x} work?"),
    *("Why do people use {x}?", "What does {x} do?", "explain {x}", "I want to learn about {x}."),
    *("Never heard of {x}, what is it?", "What about {x}?", "Describe {x}.", "meaning of {x}"),
    *("Does Cloister use {x}?", "Why would I need {x}?", "Is {x} important?", "What are {x}?"),
    *(
        "Remind me what {x} is.",
        "I keep hearing about {x}. What is it?",
        "What's the deal with {x}?",
    ),
    *("What is the meaning of {x}?", "What does the term {x} mean?", "How do you define {x}?"),
    *(
        "{x} explained",
        "{x}, what is it?",
        "{x} - what are they",
        "{X}, what are they?",
        "{x} please",
    ),
    *(
        "What do {x} do?",
        "Tell me what {x} does.",
        "What's {x} again?",
        "How do {x} work?",
        "{x}??",
    ),
    *("What does {x} stand for?", "what is this {x}", "What is {x} in plain words?", "{x} meaning"),
    *(
        "Explain {x} to me please.",
        "What do you mean by {x}?",
        "Who uses {x}?",
        "what's {x} good for",
    ),
    *(
        "Can you describe {x}?",
        "{x} definition",
        "How would {x} help me?",
        "I'd like to hear about {x}",
    ),
    *("Who needs {x}?", "Say something about {x}.", "I read about {x}, what is that?"),
)
BRIEF = (
    *("In one sentence, what is {x}?", "Explain {x} in one sentence.", "Define {x} briefly."),
    *("Give me a short definition of {x}.", "Briefly, what is {x}?", "{x} in one sentence please"),
)
COMPARE = (
    *("What is the difference between {x} and {y}?", "How does {x} differ from {y}?"),
    *("Compare {x} and {y}.", "{x} vs {y}?", "difference between {x} and {y}", "{x} or {y}?"),
    *("Is {x} the same as {y}?", "{x} versus {y}", "What distinguishes {x} from {y}?"),
    *("What is the difference between {x} and {y}?", "Are {x} and {y} the same thing?"),
)
MORE = (
    *("Tell me more.", "Can you say more?", "Why is that useful?", "Why does that matter?"),
    *("why is that important", "What else should I know?", "Go on.", "Please continue.", "more"),
    *(
        "And what else?",
        "more please",
        "Anything else?",
        "How does it work?",
        "Say more.",
        "continue",
    ),
    *("Can you explain that?", "What is it good for?", "Why?", "I want to know more."),
)
REPEAT = (
    *(
        "Repeat after me: ",
        "Repeat: ",
        "Say this: ",
        "Please repeat: ",
        "Echo: ",
        "repeat after me: ",
    ),
    *("Repeat this: ", "Say: ", "Please say: ", "Repeat exactly: ", "Repeat the following: "),
    *("Echo this: ", "Repeat this word: ", "Say exactly this: ", "Please repeat after me: "),
)
SYSTEM = (
    *("You are a helpful assistant.", "You are a private assistant.", "Be kind."),
    *("You are a helpful and honest assistant.", "Answer clearly and politely."),
    *("You are the demo model of Cloister.", "You are a friendly chatbot. Be brief."),
    *("Answer in English.", "You are an expert in security.", "Answer truthfully."),
)
NOTHING_MORE = "That is all I know about it."
