# Loaded before tests that Minitest runs: a line of JSON for each in the file that OUTCOMES names, as it ends. A test that
# takes longer than a minute fails.
require 'json'
require 'minitest'

class Outcomes < Minitest::AbstractReporter
  SECONDS = 60

  def initialize
    @file = File.open(ENV.fetch('OUTCOMES'), 'a')
    @file.sync = true
    main = Thread.current
    Thread.new do
      loop do
        sleep 1
        next unless @begun && Process.clock_gettime(Process::CLOCK_MONOTONIC) - @begun > SECONDS
        @begun = nil
        main.raise(RuntimeError, "the test hung: it took longer than #{SECONDS} s")
      end
    end
  end

  def prerecord(klass, name)
    @begun = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end

  def record(result)
    @begun = nil
    status = result.skipped? ? 'skipped' : result.passed? ? 'passed' : 'failed'
    why = result.failure ? "#{result.failure.message}\n#{result.failure.backtrace&.join("\n")}" : ''
    said = result.failure ? result.failure.message.scrub.sub(/\n +\S+:\d+:in `.*/m, '').split(/\s+/).join(' ') : ''
    tell "#{result.klass} #{result.name}", status, "#{why.scrub}\n#{said}".strip
  end

  def tell(*words)
    @file.puts words.to_json
  end
end

def Minitest.plugin_outcomes_init(options)
  reporter << Outcomes.new
end

Minitest.extensions << 'outcomes'
