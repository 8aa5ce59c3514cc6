# Loaded before ruby-pg's specs: the server that they would start is the one that libpq's variables name.
require File.expand_path('spec/helpers')

class PG::TestingHelpers::PostgresServer
  def initialize(name, port: nil, postgresql_conf: '')
    @name = name
    @port = Integer(ENV.fetch('SUITE_PORT'))
    @conninfo = "host=localhost port=#{@port} dbname=test"
    @unix_socket = '/nonexistent'
  end

  def create_test_db; end

  def teardown; end
end
